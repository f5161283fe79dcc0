"""One machine that the tests of a session share, and how it is put back between them."""
