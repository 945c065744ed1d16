"""SGLang: one client of a running server, and how one is started on this machine."""
