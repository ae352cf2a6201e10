"""Where lent pages come from: files, mappings, dma-bufs."""
