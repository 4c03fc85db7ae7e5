//go:build !unix

package capture

import (
	"io"
	"net"
	"time"
)

// unpolled leaves the connection as it is.
func unpolled(conn net.Conn, _ time.Duration) (io.ReadWriteCloser, error) { return conn, nil }
