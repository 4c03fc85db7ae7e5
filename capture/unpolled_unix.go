//go:build unix

package capture

import (
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// unpolledConn is a socket in blocking mode that the runtime's poller does not watch. The poller wakes up for
// each message that the walsender sends, whether somebody waits for it or not; a thread that reads when it
// wants to, and blocks, does not. One goroutine reads, another one writes, anybody closes.
type unpolledConn struct{ *os.File }

// unpolled takes a connection away from the poller. A TLS connection, or one of another kind, stays as it is.
func unpolled(conn net.Conn, writeTimeout time.Duration) (io.ReadWriteCloser, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return conn, nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var failed error
	if err := raw.Control(func(old uintptr) {
		if fd, failed = syscall.Dup(int(old)); failed != nil {
			return
		}
		syscall.CloseOnExec(fd)
		tv := syscall.NsecToTimeval(int64(writeTimeout))
		failed = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &tv)
	}); err != nil {
		return nil, err
	}
	// Closing takes it out of the poller; the connection lives on in the copy.
	if err := conn.Close(); failed == nil {
		failed = err
	}
	if failed == nil {
		failed = syscall.SetNonblock(fd, false) // of both, so not before the poller is done with it
	}
	if failed != nil {
		if fd >= 0 {
			syscall.Close(fd)
		}
		return nil, fmt.Errorf("take over connection: %w", failed)
	}
	return unpolledConn{os.NewFile(uintptr(fd), "walsender")}, nil
}

// Close ends the connection; a Read that blocks returns.
func (c unpolledConn) Close() error {
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_RDWR) }) // it may be gone already
	}
	return c.File.Close()
}
