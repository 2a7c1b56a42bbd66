"""The machine that hosts the methods: schedule, backbone, attention, inversion, editing."""
