"""The servers that tests need: one that runs already is used, otherwise one is started here."""
