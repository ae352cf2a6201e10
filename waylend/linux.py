"""The system calls that Python lacks, once each, with their constants: raises OSError that names the call."""
