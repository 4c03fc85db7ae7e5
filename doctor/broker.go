package doctor

import (
	"fmt"
	"net"
	"time"
)

func broker(f *Facts) []Finding {
	if f.Broker.Problem == "" {
		return nil
	}
	return one("broker", Error, "the broker of the node's own stream cannot be used: "+f.Broker.Problem,
		"local changes cannot be sent; the slot holds their WAL meanwhile", "see that it runs, and that nats.url, nats.creds_file and nats.token fit it")
}

// brokerSync: a broker that syncs now and then may lose what it has acknowledged, which the slot does not hold any more.
func brokerSync(f *Facts) []Finding {
	if !f.Config.Embedded() || f.Config.NATS.Embedded.Sync == "always" {
		return nil
	}
	return one("broker-sync", Warning, "nats.embedded.sync is "+f.Config.NATS.Embedded.Sync,
		"a power cut may take back the last minutes of the stream though the slot has let go of them; what no other node has by then is lost to the others",
		"nats: {embedded: {sync: always}}")
}

// brokerOpen: whoever can write into the stream can write into the tables.
func brokerOpen(f *Facts) []Finding {
	n := &f.Config.NATS
	host, _, err := net.SplitHostPort(n.Embedded.Listen)
	if ip := net.ParseIP(host); !f.Config.Embedded() || err != nil || n.Token != "" || host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return one("broker-open", Warning, fmt.Sprintf("the embedded broker listens on %s and asks for no token", n.Embedded.Listen),
		"whoever reaches it can read all that is replicated, and write into the tables of other nodes",
		"nats: {token_file: /etc/pgbridge/token}, the same on every node; or let only the other nodes reach that address")
}

// brokerReplicas: one server's disk is all that the stream has.
func brokerReplicas(f *Facts) []Finding {
	s := f.Broker.Stream
	if f.Config.Embedded() || s == nil || s.Replicas > 1 {
		return nil
	}
	mend := "set sync_interval: always in the jetstream section of its configuration, if it is not"
	if s.Clustered {
		mend = "set stream.replicas: 3 and restart the bridge; or " + mend
	}
	return one("broker-replicas", Warning, fmt.Sprintf("stream %s has one replica, at %s, and a client cannot see how that server syncs", s.Name, f.Broker.URL),
		"nats-server syncs every two minutes unless it is told otherwise: a power cut may take back what it has acknowledged", mend)
}

// fullShare is the part of its limit from which on a stream is told to be full.
const fullShare = 0.8

// payloadRoom is what a message needs beside a full frame.
const payloadRoom = 64 << 10

func brokerRoom(f *Facts) []Finding {
	var all []Finding
	b := f.Broker
	if need := int64(f.Config.Capture.FrameBytes) + payloadRoom; b.MaxPayload > 0 && b.MaxPayload < need {
		all = append(all, Finding{"broker-payload", Error, fmt.Sprintf("the broker at %s takes messages of %s, and frames need up to %s", b.URL, size(b.MaxPayload), size(need)),
			"a frame that is larger can never be stored, and capture stops at it",
			fmt.Sprintf("set max_payload: %d in its configuration; or capture: {frame_bytes: %s}", need, "16KiB")})
	}
	if want := int64(f.Config.Stream.MaxBytes); b.StoreLimit >= 0 && !f.Config.Embedded() && b.StoreLimit < want {
		all = append(all, Finding{"broker-room", Warning, fmt.Sprintf("the account at %s may store %s, and stream.max_bytes is %s", b.URL, size(b.StoreLimit), size(want)),
			"the broker refuses frames before the stream's own limit is reached, by which nodes that are away are let go",
			fmt.Sprintf("raise the account's limit to %s or more; or stream: {max_bytes: %d}", size(2*want), b.StoreLimit/2)})
	}
	if s := b.Stream; s != nil && s.MaxBytes > 0 && float64(s.Bytes) > fullShare*float64(s.MaxBytes) {
		all = append(all, Finding{"stream-fill", Warning, fmt.Sprintf("stream %s holds %s of %s", s.Name, size(s.Bytes), size(s.MaxBytes)),
			"when it is full, capture pauses and the slot holds WAL", "bring the nodes back that do not read it, as pgbridge status tells; or raise stream.max_bytes, and start the bridge again"})
	}
	return all
}

func diskRoom(f *Facts) []Finding {
	var all []Finding
	for _, d := range f.Disks {
		if d.Free >= d.Need {
			continue
		}
		all = append(all, Finding{"disk-room", Warning, fmt.Sprintf("%s (%s) has %s free, and what is configured may take %s more (%s)", d.What, d.Path, size(d.Free), size(d.Need), d.Limit),
			"when the disk is full before these limits are reached, the broker stops, or the server does",
			fmt.Sprintf("make room, or lower %s", d.Limit)})
	}
	return all
}

// certificateNotice is how long before its end a certificate is told of.
const certificateNotice = 30 * 24 * time.Hour

func certificates(f *Facts) []Finding {
	var all []Finding
	for _, c := range f.Certs {
		left := c.Ends.Sub(f.Now)
		const why = "connections are refused from then on, and what goes over them waits"
		switch {
		case left <= 0:
			all = append(all, Finding{"certificate-expired", Error, fmt.Sprintf("the certificate of %s has ended at %s", c.Of, c.Ends.UTC().Format(time.DateTime)), why, c.Mend})
		case left < certificateNotice:
			all = append(all, Finding{"certificate-ends", Warning, fmt.Sprintf("the certificate of %s ends at %s, in %d days", c.Of, c.Ends.UTC().Format(time.DateTime), int(left.Hours()/24)), why, c.Mend})
		}
	}
	return all
}
