"""Jobs in their run directories: started, resumed, interrupted, logged."""
