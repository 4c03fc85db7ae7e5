package stream

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// probeSize is how much a store must take at least: less than any useful stream, more than what a file
// system keeps in an inode.
const probeSize = 64 << 10

// probeListen checks that an address can be listened on, since the server itself reports that as text.
func probeListen(address string) error {
	l, err := net.Listen("tcp", address)
	switch {
	case err == nil:
		return l.Close()
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("listen on %s: another program has this address; stop it, or choose another one as "+
			"nats.embedded.listen: %w", address, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("listen on %s: this machine has no such address; choose another one as "+
			"nats.embedded.listen: %w", address, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("listen on %s: not permitted; choose a port above 1023 as nats.embedded.listen: %w", address, err)
	default:
		return fmt.Errorf("listen on %s (nats.embedded.listen): %w", address, err)
	}
}

// probeStore checks that files can be created and written in a directory, which it creates.
func probeStore(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return storeError("create", dir, err)
	}
	f, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return storeError("write to", dir, err)
	}
	_, err = f.Write(make([]byte, probeSize))
	err = errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
	if err != nil {
		return storeError("write to", dir, err)
	}
	return nil
}

func storeError(attempt, dir string, err error) error {
	mend := "see that it is a directory which the user who runs pgbridge can write, or choose another data_dir"
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		mend = "its file system is full: make room, or choose another data_dir"
	}
	return fmt.Errorf("%s store directory %q: %w; %s", attempt, dir, err, mend)
}
