"""Training: one step, the loop around it, schedules, memory."""
