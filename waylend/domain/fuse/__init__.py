"""A borrower whose p2m is the page cache of FUSE files that we serve."""
