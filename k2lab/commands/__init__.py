"""The commands of the command line, by subject: each adds itself to the parser."""
