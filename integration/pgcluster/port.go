package pgcluster

import (
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
	"sync"
)

// reserved are the ports that this process has; guarded by reservedMu.
var (
	reservedMu sync.Mutex
	reserved   = map[int]net.Listener{}
)

// FreePort picks a TCP port that nobody listens on, below the range from which the kernel serves outgoing connections (32768 on
// Linux): a port out of that range can be taken by any connection while its server is stopped. No other call of FreePort returns it as
// long as this process lives, on Linux in whatever process. It is safe for concurrent use.
func FreePort() (int, error) {
	const lowest, highest, attempts = 20000, 32000, 1000
	for range attempts {
		port := lowest + rand.IntN(highest-lowest)
		if !reserve(port) {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("find a free port in %d to %d: none was found", lowest, highest)
}

// reserve takes a port's name until this process ends: an abstract socket, which leaves no file behind (unix(7)).
func reserve(port int) bool {
	reservedMu.Lock()
	defer reservedMu.Unlock()
	if _, ok := reserved[port]; ok {
		return false
	}
	var l net.Listener
	if runtime.GOOS == "linux" {
		var err error
		if l, err = net.Listen("unix", fmt.Sprintf("@pgbridge-port-%d", port)); err != nil {
			return false
		}
	}
	reserved[port] = l
	return true
}
