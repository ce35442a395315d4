"""Whether anything ends the process, or is left behind: each topic a module with `rows`; the command is `__main__`."""
