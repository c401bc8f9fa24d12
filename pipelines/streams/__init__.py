"""Where items come from and go to: files, sockets, a Gadgetron parent. Gadgets never see any of this."""
