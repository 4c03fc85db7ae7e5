package stream

import "github.com/nats-io/nats-server/v2/server"

// Permissions are the subjects on which a user of a NATS server may publish and subscribe; all others are refused. docs/topology.md has
// the same as a table.
type Permissions struct {
	Publish, Subscribe []string
	Answer             bool // may answer whoever asks it
}

// streamsAt are the streams at a node's server.
func streamsAt(cluster, node string, others []string) []string {
	all := []string{StreamName(cluster, node)}
	for _, o := range others {
		all = append(all, RelayName(cluster, node, o))
	}
	return all
}

// streamAPI are subjects of JetStream's API, for each stream.
func streamAPI(streams []string, kinds ...string) (all []string) {
	for _, kind := range kinds {
		for _, s := range streams {
			all = append(all, "$JS.API."+kind+"."+s)
		}
	}
	return all
}

// consumerAPI are those of a stream's consumers.
func consumerAPI(streams []string) (all []string) {
	for _, kind := range []string{"CREATE", "MSG.NEXT", "DELETE"} {
		for _, s := range streams {
			all = append(all, "$JS.API.CONSUMER."+kind+"."+s+".*")
		}
	}
	return all
}

// questions are the subjects on which a node is asked.
func questions(cluster, node string) []string {
	return []string{KnockSubject(cluster, node), DeltaSubject(cluster, node), CatalogSubject(cluster, node), VerifySubject(cluster, node), NodeSubject(cluster, node)}
}

// OwnPermissions are what a node needs at its own server, beside others, of which some are edges. With its own goes its shadow's stream.
func OwnPermissions(cluster, node string, others []string, edges bool) Permissions {
	streams := append(streamsAt(cluster, node, others), ShadowName(cluster, node))
	p := Permissions{Answer: true,
		Publish: append([]string{Subject(cluster, node, "*"), AheadSubject(cluster, node, "*"), HelloSubject(cluster, node), "$JS.API.INFO"},
			append(streamAPI(streams, "STREAM.INFO", "STREAM.CREATE", "STREAM.UPDATE", "STREAM.PURGE", "STREAM.DELETE", "STREAM.MSG.GET", "DIRECT.GET"),
				consumerAPI(streams)...)...),
		Subscribe: append([]string{inboxes + ".>"}, questions(cluster, node)...)}
	if edges {
		door := DoorSubject(cluster, "*", node)
		p.Publish = append(p.Publish, door, tunnelSubject(door, "*", inward))
		p.Subscribe = append(p.Subscribe, openedSubject(door), tunnelSubject(door, "*", outward))
	}
	return p
}

// PeerPermissions are what another node, peer, needs at a node's server; edge: it is one, and holds a door open there.
func PeerPermissions(cluster, node, peer string, others []string, edge bool) Permissions {
	streams := append(streamsAt(cluster, node, others), ShadowName(cluster, node))
	p := Permissions{
		Publish:   append(append(streamAPI(streams, "STREAM.INFO", "DIRECT.GET"), consumerAPI(streams)...), questions(cluster, node)...),
		Subscribe: []string{inboxOf(peer) + ".>", HelloSubject(cluster, node), AheadSubject(cluster, node, "*")}}
	if edge {
		door := DoorSubject(cluster, peer, node)
		p.Answer = true
		p.Publish = append(p.Publish, openedSubject(door), tunnelSubject(door, "*", outward))
		p.Subscribe = append(p.Subscribe, door, tunnelSubject(door, "*", inward))
	}
	return p
}

// forServer are they as the server takes them.
func (p Permissions) forServer() *server.Permissions {
	x := &server.Permissions{Publish: &server.SubjectPermission{Allow: p.Publish}, Subscribe: &server.SubjectPermission{Allow: p.Subscribe}}
	if p.Answer {
		x.Response = &server.ResponsePermission{MaxMsgs: server.DEFAULT_ALLOW_RESPONSE_MAX_MSGS, Expires: server.DEFAULT_ALLOW_RESPONSE_EXPIRATION}
	}
	return x
}

// ServerUser is one who may connect to a server, by the public part of an nkey.
type ServerUser struct {
	NKey string
	Permissions
}
