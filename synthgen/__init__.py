"""The core of synthgen: what a batch is and how one is run, without a database, a queue or a terminal.

What the core needs from outside it declares in ``ports.py``; ``storage`` and ``tasks`` supply it.
"""

__version__ = "0.1.0"
