//! A comparison for people and for programs. Decides layout only.

use std::fmt::Write as _;

use owo_colors::{OwoColorize as _, Style};
use serde::Serialize;

use super::compare::{Comparison, Field, Framing, Line};

/// Columns that a line of a response may take; more is cut, around the marked byte if there is one.
const WIDTH: usize = 96;

/// What stands for bytes that are not shown.
const CUT: &str = "...";

/// Width of the column with the names of the sides.
const SIDE: usize = 7;

/// What is known of one side beside its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Title {
    pub(super) capture_id: String,
    pub(super) time: String,
    /// Cause of its failure; none for a healthy exchange.
    pub(super) cause: Option<String>,
    /// Method, host and path, where they were captured.
    pub(super) request: Option<String>,
}

/// One object for programs.
#[derive(Debug, Serialize)]
pub(super) struct Sheet<'a> {
    upstream: &'a str,
    failing: Side<'a>,
    healthy: Side<'a>,
    headers: Vec<Header<'a>>,
    same_headers: usize,
}

#[derive(Debug, Serialize)]
struct Side<'a> {
    #[serde(flatten)]
    title: &'a Title,
    status_line: Option<Shown>,
    framing: &'a str,
    broken: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Header<'a> {
    name: &'a str,
    /// `failing`, `healthy` or `both`.
    on: &'static str,
    failing: Vec<Shown>,
    healthy: Vec<Shown>,
}

/// A line with everything escaped that is not printable ASCII.
#[derive(Debug, Serialize)]
struct Shown {
    text: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    marks: Vec<ShownMark>,
}

#[derive(Debug, Serialize)]
struct ShownMark {
    rule: &'static str,
    /// Place in the response.
    offset: u64,
    /// The byte, where the rule is not broken by the lack of one.
    byte: Option<u8>,
}

impl<'a> Sheet<'a> {
    pub(super) fn new(
        upstream: &'a str,
        [failing, healthy]: [&'a Title; 2],
        comparison: &'a Comparison,
    ) -> Self {
        let side = |title, status: &Option<Line>, framing: &'a Framing| Side {
            title,
            status_line: status.as_ref().map(shown),
            framing: &framing.text,
            broken: framing.broken.iter().map(shown).collect(),
        };
        let header = |field: &'a Field| Header {
            name: &field.name,
            on: match (field.failing.is_empty(), field.healthy.is_empty()) {
                (false, false) => "both",
                (false, true) => "failing",
                _ => "healthy",
            },
            failing: field.failing.iter().map(shown).collect(),
            healthy: field.healthy.iter().map(shown).collect(),
        };
        Self {
            upstream,
            failing: side(
                failing,
                &comparison.failing_status,
                &comparison.failing_framing,
            ),
            healthy: side(
                healthy,
                &comparison.healthy_status,
                &comparison.healthy_framing,
            ),
            headers: comparison.fields.iter().map(header).collect(),
            same_headers: comparison.same_fields,
        }
    }
}

fn shown(line: &Line) -> Shown {
    let marks = line.marks.iter().map(|mark| ShownMark {
        rule: mark.rule,
        offset: mark.offset,
        byte: line.bytes.get(mark.at).copied(),
    });
    Shown {
        text: line.bytes.iter().map(|byte| visible(*byte)).collect(),
        marks: marks.collect(),
    }
}

/// A byte as it is shown: what is not printable ASCII would act on a terminal or not be seen.
fn visible(byte: u8) -> String {
    match byte {
        b'\'' | b'"' => char::from(byte).to_string(),
        _ => byte.escape_ascii().to_string(),
    }
}

/// The comparison as a page. No line end at the end.
pub(super) fn text(
    upstream: &str,
    [failing, healthy]: [&Title; 2],
    comparison: &Comparison,
    colour: bool,
) -> String {
    let mut page = Page {
        text: String::new(),
        colour,
    };
    page.line(format_args!("upstream {upstream}"));
    page.title(SideOf::Failing, failing);
    page.title(SideOf::Healthy, healthy);

    page.heading("status line");
    let pair = [&comparison.failing_status, &comparison.healthy_status];
    match pair {
        [Some(one), Some(other)] if one == other && one.marks.is_empty() => {
            page.response_line(SideOf::Both, one);
        }
        [one, other] => {
            page.group(SideOf::Failing, one.as_ref());
            page.group(SideOf::Healthy, other.as_ref());
        }
    }

    page.heading("headers");
    for field in &comparison.fields {
        page.group(SideOf::Failing, &field.failing);
        page.group(SideOf::Healthy, &field.healthy);
    }
    let same = match (comparison.same_fields, comparison.fields.is_empty()) {
        (same, true) => format!("all {same} are the same"),
        (same, false) => format!("{same} more are the same"),
    };
    page.row(SideOf::Both, &same);

    page.heading("framing");
    page.framing(SideOf::Failing, &comparison.failing_framing);
    page.framing(SideOf::Healthy, &comparison.healthy_framing);
    page.text.truncate(page.text.trim_end().len());
    page.text
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SideOf {
    Failing,
    Healthy,
    Both,
}

impl SideOf {
    fn name(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Healthy => "healthy",
            Self::Both => "both",
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Failing => Style::new().red(),
            Self::Healthy => Style::new().green(),
            Self::Both => Style::new().dimmed(),
        }
    }
}

struct Page {
    text: String,
    colour: bool,
}

impl Page {
    fn styled(&self, style: Style) -> Style {
        if self.colour { style } else { Style::new() }
    }

    fn line(&mut self, line: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn heading(&mut self, name: &str) {
        let style = self.styled(Style::new().bold());
        self.line(format_args!("\n{}", name.style(style)));
    }

    fn row(&mut self, side: SideOf, content: &str) {
        let style = self.styled(side.style());
        let name = format!("{:SIDE$}", side.name());
        self.line(format_args!("  {}  {content}", name.style(style)));
    }

    fn title(&mut self, side: SideOf, title: &Title) {
        let cause = title.cause.as_deref().unwrap_or("no failure");
        let mut content = format!("{}  {}  {cause}", title.capture_id, title.time);
        if let Some(request) = &title.request {
            content += "  ";
            content += request;
        }
        self.row(side, &content);
    }

    /// The lines of one side, or word that there is none.
    fn group<'l>(&mut self, side: SideOf, lines: impl IntoIterator<Item = &'l Line>) {
        let mut lines = lines.into_iter().peekable();
        if lines.peek().is_none() {
            let faint = self.styled(Style::new().dimmed());
            self.row(side, &format!("{}", "(absent)".style(faint)));
        }
        for line in lines {
            self.response_line(side, line);
        }
    }

    fn framing(&mut self, side: SideOf, framing: &Framing) {
        self.row(side, &framing.text);
        for line in &framing.broken {
            self.response_line(side, line);
        }
    }

    /// A line of a response, each marked byte in inverse video, with a caret and its rule below.
    fn response_line(&mut self, side: SideOf, line: &Line) {
        let cells = Cells::new(line);
        let mut content = String::new();
        let inverse = self.styled(Style::new().reversed());
        for (at, cell) in cells.shown() {
            let marked = line.marks.iter().any(|mark| Some(mark.at) == at);
            let style = if marked { inverse } else { Style::new() };
            let _ = write!(content, "{}", cell.style(style));
        }
        self.row(side, &content);
        for mark in &line.marks {
            let (column, width) = cells.place(mark.at);
            let indent = SIDE + 4 + column;
            let carets = "^".repeat(width);
            let style = self.styled(side.style());
            let offset = mark.offset;
            self.line(format_args!(
                "{:indent$}{} {} (byte {offset})",
                "",
                carets.style(style),
                mark.rule
            ));
        }
    }
}

/// A line as it is shown, byte by byte.
struct Cells {
    bytes: Vec<String>,
    /// The bytes that are shown.
    from: usize,
    to: usize,
}

impl Cells {
    fn new(line: &Line) -> Self {
        let cells: Vec<_> = line.bytes.iter().map(|byte| visible(*byte)).collect();
        let width = |cells: &[String]| -> usize { cells.iter().map(String::len).sum() };
        let (mut from, mut to) = (0, cells.len());
        let mark = line.marks.first().map_or(0, |mark| mark.at.min(to));
        let (before, behind) = cells.split_at(mark);
        let (mut before, mut behind) = (width(before), width(behind));
        // The mark stays in view: what is far behind it goes first, then what is far before it.
        while before + behind > WIDTH && behind > WIDTH / 2 && to > mark + 1 {
            to -= 1;
            behind -= cells.get(to).map_or(0, String::len);
        }
        while before + behind > WIDTH && from < mark {
            before -= cells.get(from).map_or(0, String::len);
            from += 1;
        }
        Self {
            bytes: cells,
            from,
            to,
        }
    }

    /// Each piece that is shown, with the byte that it stands for.
    fn shown(&self) -> impl Iterator<Item = (Option<usize>, &str)> {
        let before = (self.from > 0).then_some((None, CUT));
        let after = (self.to < self.bytes.len()).then_some((None, CUT));
        let cells = self.bytes.get(self.from..self.to).unwrap_or_default();
        let cells = cells
            .iter()
            .enumerate()
            .map(|(at, cell)| (Some(self.from + at), cell.as_str()));
        before.into_iter().chain(cells).chain(after)
    }

    /// Column and width of a byte; one column behind the end for a byte that is not there.
    fn place(&self, at: usize) -> (usize, usize) {
        let before = |(place, _): &(Option<usize>, &str)| place.is_none_or(|place| place < at);
        let mut shown = self.shown();
        let column = shown.by_ref().take_while(before);
        let column = column.map(|(_, cell)| cell.len()).sum();
        (column, self.bytes.get(at).map_or(1, String::len))
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::compare;
    use super::super::exchange::{End, of_bytes};
    use super::*;

    fn page(failing: &[u8], healthy: &[u8], colour: bool) -> String {
        let request = b"GET /cart HTTP/1.1\r\nHost: shop\r\n\r\n";
        let failing = of_bytes(request, failing, Some(End::GatewayClosed));
        let healthy = of_bytes(request, healthy, None);
        let title = |id: &str, cause: Option<&str>| Title {
            capture_id: id.to_owned(),
            time: "2026-01-31T12:00:00.000Z".to_owned(),
            cause: cause.map(str::to_owned),
            request: Some("GET shop/cart".to_owned()),
        };
        let titles = [
            &title("c-2", Some("http1.header_control_char")),
            &title("c-1", None),
        ];
        text(
            "10.0.0.7:8080",
            titles,
            &compare(&failing, &healthy),
            colour,
        )
    }

    #[test]
    fn the_page_puts_the_sides_under_each_other_and_a_caret_under_the_byte() {
        let failing =
            b"HTTP/1.1 200 OK\r\nServer: a\r\nX-Id: q\x00\xff\r\nContent-Length: 0\r\n\r\n";
        let healthy =
            b"HTTP/1.1 200 OK\r\nServer: a\r\nX-Id: q1\r\nVary: b\r\nContent-Length: 2\r\n\r\nok";
        let expected = r"upstream 10.0.0.7:8080
  failing  c-2  2026-01-31T12:00:00.000Z  http1.header_control_char  GET shop/cart
  healthy  c-1  2026-01-31T12:00:00.000Z  no failure  GET shop/cart

status line
  both     HTTP/1.1 200 OK

headers
  failing  X-Id: q\x00\xff
                  ^^^^ NUL in a header value (byte 35)
  healthy  X-Id: q1
  failing  Content-Length: 0
  healthy  Content-Length: 2
  failing  (absent)
  healthy  Vary: b
  both     1 more are the same

framing
  failing  no body: complete, then the gateway closed
  healthy  Content-Length: complete with 2 bytes";
        assert_eq!(page(failing, healthy, false), expected);
        let coloured = page(failing, healthy, true);
        assert!(coloured.contains("q\x1b[7m\\x00\x1b[0m\\xff"), "{coloured}");
        assert!(coloured.contains("\x1b[31mfailing\x1b[0m"), "{coloured}");
    }

    #[test]
    fn a_long_line_is_cut_around_its_mark() {
        let mut long = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        long.extend([b'a'; 300]);
        long.push(7);
        long.extend([b'b'; 300]);
        long.extend(b"\r\nContent-Length: 0\r\n\r\n");
        let page = page(
            &long,
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            false,
        );
        let lines: Vec<_> = page.lines().collect();
        let at = lines
            .iter()
            .position(|line| line.contains("\\x07"))
            .unwrap();
        let (line, caret) = (lines[at], lines[at + 1]);
        assert!(line.len() <= WIDTH + SIDE + 4 + 2 * CUT.len(), "{line}");
        assert!(
            line.contains("  ...aaa") && line.ends_with("bbb..."),
            "{line}"
        );
        assert_eq!(line.find("\\x07"), caret.find("^^^^"), "{line}\n{caret}");
    }

    #[test]
    fn nothing_that_acts_on_a_terminal_gets_through() {
        let evil = b"HTTP/1.1 200 \x1b[2J\r\nX\x9b: \x1b]0;t\x07\r\n\r\n\x1b[31m";
        let page = page(evil, evil, false);
        assert!(
            page.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~')),
            "{page}"
        );
    }

    #[test]
    fn programs_get_the_same() {
        let failing = of_bytes(b"", b"HTTP/1.1 20 OK\r\n\r\n", None);
        let healthy = of_bytes(b"", b"HTTP/1.1 200 OK\r\nA: 1\r\n\r\n", None);
        let comparison = compare(&failing, &healthy);
        let title = Title::default();
        let sheet = Sheet::new("10.0.0.7:80", [&title, &title], &comparison);
        let json = serde_json::to_value(&sheet).unwrap();
        assert_eq!(json["failing"]["status_line"]["text"], "HTTP/1.1 20 OK");
        let mark = &json["failing"]["status_line"]["marks"][0];
        assert_eq!(mark["rule"], "status code of fewer than three digits");
        assert_eq!(json["headers"][0]["on"], "healthy");
        assert_eq!(json["headers"][0]["healthy"][0]["text"], "A: 1");
    }
}
