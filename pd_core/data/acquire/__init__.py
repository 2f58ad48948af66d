"""Download, unpack, verify and mirror data sets and weights."""
