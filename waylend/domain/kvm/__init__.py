"""A guest of KVM whose VMM embeds us: memory slots over an address range that userfaultfd watches."""
