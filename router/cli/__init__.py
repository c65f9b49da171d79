"""The command line: reads files and options, shows what happens, and decides nothing itself."""
