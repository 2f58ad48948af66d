"""What `promptkd page` builds: all that is known of a profile's results, on one page.

`build` gathers, out of what the stages wrote; `html` and `markdown` show what it gathered.
"""
