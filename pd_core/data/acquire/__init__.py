"""How data sets and weights get here: download, unpack, verify, mirror."""
