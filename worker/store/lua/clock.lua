-- Return the time, now in epoch ms.
return int(NOW)
