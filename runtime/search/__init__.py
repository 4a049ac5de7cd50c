"""The search job and the supernet that it trains."""
