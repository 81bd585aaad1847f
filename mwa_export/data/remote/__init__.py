"""Remote files: requests, retries and time-outs, http, and files read by ranges."""
