"""What stands in for hardware: a Xen hypervisor with its guests, and a heap of GPU memory. Nothing here is a real device."""
