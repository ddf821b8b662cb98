-- Tell the time. Returns now in epoch ms.
return int(NOW)
