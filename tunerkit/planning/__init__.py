"""What a run takes before it starts: memory of the GPU and of the machine, disk and time, and what makes it fit."""
