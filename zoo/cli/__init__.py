"""The command line: one small file a command group, no machine learning in here."""

if not __name__.startswith("zoo."):
    # A second copy of a package under another name registers its ops twice and silently wins.
    msg = f"'{__name__}' is a door to browse the code by; import 'zoo.cli' instead"
    raise ImportError(msg)
