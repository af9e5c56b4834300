"""What a person touches: the command line, the terminal chat and the demo page.

Importing this package imports nothing heavy; `anygpt --help` has to start in well under a second.
"""

__version__ = "0.1.0"
