"""A jail of our own: what a process of waylend's gives up once it is set up, by itself and for good.

Nothing here knows what the processes are for, but ``profiles``, which says what each of them still needs.
"""
