package stream

import (
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
)

// StreamName is the name of the stream that a node writes.
func StreamName(cluster, node string) string { return "PGB_" + cluster + "_" + node }

// RelayName is the name of the stream in which a sender hands another node's frames on. Names of nodes have no hyphen.
func RelayName(cluster, sender, origin string) string {
	return StreamName(cluster, sender) + "-" + origin
}

// streamOf is the name of the stream in which a sender has an origin's frames.
func streamOf(cluster, sender, origin string) string {
	if origin == sender {
		return StreamName(cluster, sender)
	}
	return RelayName(cluster, sender, origin)
}

// Subject is where a sender publishes the frames of an origin's node.
func Subject(cluster, sender, origin string) string {
	return "pgb." + cluster + "." + sender + "." + origin
}

// shadow stands where the name of an origin does for what a node in shadow mode writes: frames that are compared and never applied.
// Names of nodes have no capitals.
const shadow = "SHADOW"

// ShadowName is the name of the stream that a node in shadow mode writes.
func ShadowName(cluster, node string) string { return StreamName(cluster, node) + "-" + shadow }

// AheadSubject is where a sender publishes what its readers may have of an origin before its stream has stored it. No
// stream stores that.
func AheadSubject(cluster, sender, origin string) string {
	return "pgb_ahead." + cluster + "." + sender + "." + origin
}

const maxName = 16

// checkName keeps names to what fits a subject's token, a slot and a stream alike.
func checkName(what, name string) error {
	ok := len(name) > 0 && len(name) <= maxName
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_')
	}
	if !ok {
		return fmt.Errorf("%s name %q: a name is 1 to %d of a-z, 0-9 and _", what, name, maxName)
	}
	return nil
}

// brokerName names a broker in errors, without user and password.
func brokerName(nc *nats.Conn) string {
	if u := nc.ConnectedUrl(); u != "" {
		return redact(u)
	}
	return redact(strings.Join(nc.Opts.Servers, ","))
}
