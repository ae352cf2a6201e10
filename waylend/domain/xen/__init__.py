"""A Xen guest: the lender's side, against an interface of operations that a hypervisor offers."""
