package bridge

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nats-io/nkeys"

	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/wire"
)

// The files by which frames are signed (stream.signatures). The key is not the one by which a node is known at servers: there it signs what
// a server chooses.
const (
	signSeedFile = "frames.nk" // the nkey that signs this node's frames
	signersFile  = "signers"   // the public part of each node's
)

// signing is what a node signs its frames with, and checks others' frames by. Both are nil if frames go as they are.
type signing struct {
	signer   *wire.Signer
	verifier *wire.Verifier
}

func readSigning(cfg *config.Config) (s signing, err error) {
	if cfg.Stream.Signatures == config.SignaturesNone {
		return s, nil
	}
	k := nodeKeys{dir: cfg.NATS.KeysDir}
	public, err := readNodes(k.file(signersFile), append(peerNames(cfg), cfg.Node))
	if err != nil {
		return s, keysFault(cfg, err)
	}
	text, err := os.ReadFile(k.file(signSeedFile))
	if err != nil {
		return s, keysFault(cfg, err)
	}
	if own, err := publicOf(text); err != nil || own != public[cfg.Node] {
		return s, keysFault(cfg, fmt.Errorf("%s is not the key of node %s that %s has (%v)", k.file(signSeedFile), cfg.Node, signersFile, err))
	}
	_, seed, err := nkeys.DecodeSeed(bytes.TrimSpace(text))
	if err != nil {
		return s, keysFault(cfg, err)
	}
	keys := map[string][]byte{}
	for node, text := range public {
		if keys[node], err = nkeys.Decode(nkeys.PrefixByteUser, []byte(text)); err != nil {
			return s, keysFault(cfg, err)
		}
	}
	if s.signer, err = wire.NewSigner(seed); err != nil {
		return s, err
	}
	s.verifier, err = wire.NewVerifier(keys, cfg.Stream.Signatures == config.SignaturesRequire)
	return s, err
}

// readNodes reads a file of public nkeys, by node, which must have those of some.
func readNodes(file string, nodes []string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	all, err := parseNodes(filepath.Base(file), text)
	if err != nil {
		return nil, err
	}
	for _, node := range nodes {
		if all[node] == "" {
			return nil, fmt.Errorf("%s has no key of node %s", file, node)
		}
	}
	return all, nil
}

func keysFault(cfg *config.Config, err error) error {
	return &configError{fmt.Sprintf("nats.keys_dir: %v; run pgbridge keys, and bring the directory of node %s here", err, cfg.Node)}
}
