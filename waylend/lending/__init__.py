"""The lender's book, and the protocol by which pages come and go. No system call is made here."""
