"""Remote files: requests with retries and time-outs, http, and reading by byte ranges."""
