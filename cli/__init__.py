"""The command line. One file per command: parse, call the library, say where the result is."""
