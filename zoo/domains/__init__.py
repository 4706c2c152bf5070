"""The fields of the zoo; one folder a domain, one folder a task inside it."""

if not __name__.startswith("zoo."):
    # A second copy of a package under another name registers its ops twice and silently wins.
    msg = f"'{__name__}' is a door to browse the code by; import 'zoo.domains' instead"
    raise ImportError(msg)
