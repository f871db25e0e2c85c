"""What any program needs: log, files, devices, processes, signals; knows nothing of mattes."""
