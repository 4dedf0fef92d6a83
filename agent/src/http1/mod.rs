//! HTTP/1 on the hop: requests as far as they frame responses, responses strictly.
