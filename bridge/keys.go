package bridge

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nats-io/nkeys"

	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/stream"
)

// The files of a node's directory, which pgbridge keys makes and nats.keys_dir names.
const (
	authorityFile   = "ca.pem"   // who vouches for all servers
	certificateFile = "node.pem" // of this node's server; an edge, which nobody dials, has none
	privateFile     = "node.key"
	seedFile        = "node.nk" // the nkey by which this node is known at all servers
	nodesFile       = "nodes"   // the public part of each node's
)

// nodeKeys are what a node's directory holds.
type nodeKeys struct {
	dir   string
	tls   *tls.Config       // nil for an edge
	users map[string]string // public nkeys, by node
}

// readKeys reads the directory of nats.keys_dir; nil if there is none.
func readKeys(cfg *config.Config) (*nodeKeys, error) {
	if cfg.NATS.KeysDir == "" {
		return nil, nil
	}
	k := &nodeKeys{dir: cfg.NATS.KeysDir}
	fault := func(err error) error { return keysFault(cfg, err) }
	var err error
	if k.users, err = readNodes(k.file(nodesFile), append(peerNames(cfg), cfg.Node)); err != nil {
		return nil, fault(err)
	}
	seed, err := os.ReadFile(k.file(seedFile))
	if err != nil {
		return nil, fault(err)
	}
	if public, err := publicOf(seed); err != nil || public != k.users[cfg.Node] {
		return nil, fault(fmt.Errorf("%s is not the key of node %s that %s has (%v)", k.file(seedFile), cfg.Node, nodesFile, err))
	}
	if _, err := os.Stat(k.file(authorityFile)); err != nil {
		return nil, fault(err)
	}
	if cfg.Edge(cfg.Node) {
		return k, nil
	}
	pair, err := tls.LoadX509KeyPair(k.file(certificateFile), k.file(privateFile))
	if err != nil {
		return nil, fault(err)
	}
	k.tls = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	return k, nil
}

func (k *nodeKeys) file(name string) string { return filepath.Join(k.dir, name) }

// publicOf is the public part of an nkey's seed.
func publicOf(seed []byte) (string, error) {
	pair, err := nkeys.FromSeed(bytes.TrimSpace(seed))
	if err != nil {
		return "", err
	}
	defer pair.Wipe()
	return pair.PublicKey()
}

// parseNodes reads lines of a node's name and its public nkey.
func parseNodes(name string, text []byte) (map[string]string, error) {
	all := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) == 0 || strings.HasPrefix(words[0], "#"):
		case len(words) != 2 || !nkeys.IsValidPublicUserKey(words[1]):
			return nil, fmt.Errorf("line %d of %s is not a node and its public nkey", n, name)
		default:
			all[words[0]] = words[1]
		}
	}
	return all, lines.Err()
}

// serverUsers are who may connect to the server inside the bridge of a node, and what they may do there.
func (k *nodeKeys) serverUsers(cfg *config.Config) []stream.ServerUser {
	others := peerNames(cfg)
	own := stream.OwnPermissions(cfg.Cluster, cfg.Node, others, slices.ContainsFunc(others, cfg.Edge))
	all := []stream.ServerUser{{NKey: k.users[cfg.Node], Permissions: own}}
	for _, node := range others {
		p := stream.PeerPermissions(cfg.Cluster, cfg.Node, node, others, cfg.Edge(node))
		all = append(all, stream.ServerUser{NKey: k.users[node], Permissions: p})
	}
	return all
}

// withKeys completes how a node's server is reached by what nats.keys_dir holds: whoever has no other credentials there.
func withKeys(cfg *config.Config, node string, a config.Access) config.Access {
	if cfg.NATS.KeysDir == "" || a.HasCredentials() {
		return a
	}
	a.NKeyFile = filepath.Join(cfg.NATS.KeysDir, seedFile)
	if a.CAFile == "" && !cfg.Edge(node) { // whose server is reached through a tunnel
		a.CAFile = filepath.Join(cfg.NATS.KeysDir, authorityFile)
	}
	return a
}

// MakeKeys makes a directory in dir for each node of a configuration's topology: TLS certificates of an authority that it makes, too,
// and nkeys. What is there already stays, but certificates that end within the year, or of a host that has changed. So it is run again
// for a new node, whose key all nodes must get: their files named nodes and signers. tell is told what it does.
func MakeKeys(cfg *config.Config, dir string, tell func(text string)) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	authority, err := openAuthority(dir, cfg.Cluster, tell)
	if err != nil {
		return err
	}
	nodes := append(peerNames(cfg), cfg.Node)
	slices.Sort(nodes)
	var users, signers strings.Builder
	for _, node := range nodes {
		user, err := makeSeed(filepath.Join(dir, node), seedFile, tell)
		if err != nil {
			return fmt.Errorf("make the key of node %s: %w", node, err)
		}
		signer, err := makeSeed(filepath.Join(dir, node), signSeedFile, tell)
		if err != nil {
			return fmt.Errorf("make the key by which node %s signs: %w", node, err)
		}
		fmt.Fprintf(&users, "%s %s\n", node, user)
		fmt.Fprintf(&signers, "%s %s\n", node, signer)
	}
	if err := makeSealKeys(cfg, dir, tell); err != nil {
		return fmt.Errorf("make keys for what only some nodes have: %w", err)
	}
	for _, node := range nodes {
		k := nodeKeys{dir: filepath.Join(dir, node)}
		if err := writeFile(k.file(authorityFile), authority.pem, 0o644); err != nil {
			return err
		}
		err := errors.Join(writeFile(k.file(nodesFile), []byte(users.String()), 0o644), writeFile(k.file(signersFile), []byte(signers.String()), 0o644))
		if err != nil {
			return err
		}
		hosts := config.Hosts(cfg.Topology.Nodes[node], cfg.NATS.Links[node].URL)
		if cfg.Edge(node) {
			continue
		}
		if err := authority.certify(&k, node, hosts, tell); err != nil {
			return fmt.Errorf("make the certificate of node %s: %w", node, err)
		}
	}
	return nil
}

// makeSeed makes an nkey of a node unless it is there, and returns its public part.
func makeSeed(dir, name string, tell func(string)) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	seed, err := os.ReadFile(path)
	if err == nil {
		return publicOf(seed)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	pair, err := nkeys.CreateUser()
	if err != nil {
		return "", err
	}
	defer pair.Wipe()
	if seed, err = pair.Seed(); err != nil {
		return "", err
	}
	tell("makes " + path)
	if err := writeFile(path, append(seed, '\n'), 0o600); err != nil {
		return "", err
	}
	return pair.PublicKey()
}

// writeFile writes a file as a whole, in place of one that is there.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	part, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // readable to its owner alone
	if err != nil {
		return err
	}
	_, err = part.Write(content)
	err = errors.Join(err, part.Chmod(mode), part.Close())
	if err == nil {
		err = os.Rename(part.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part.Name()))
	}
	return nil
}
