"""What the words that QEMU and qmpsnap print mean, and what to do about each.

`qmpsnap explain` and the reference pages are made from it. There is one table for each
kind of word; `table` puts them together.
"""
