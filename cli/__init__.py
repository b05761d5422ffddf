"""The terminal: Click commands, one file each, and Rich. What they do is in ``synthgen``; ``tasks`` opens services."""
