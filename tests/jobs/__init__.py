"""Jobs of several processes: how they are started, meet, share a step, and end."""
