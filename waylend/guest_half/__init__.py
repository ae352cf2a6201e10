"""The guest's side: a Wayland socket in a guest, pools, surfaces, damage, and copies into the aperture."""
