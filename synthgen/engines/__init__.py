"""Engines turn requests into replies; one file each, imported only on use.

``base`` is the protocol, ``lane`` asks again and bounds what is in flight, ``registry`` finds an engine by name.
"""
