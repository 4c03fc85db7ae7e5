package wire

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
)

// A frame's author may sign it, so that who hands it on cannot change what it says of its author or holds. What is signed is the claim:
// the header's fields but for those that are of whoever hands it on, and a hash of the body. It follows from the frame, and so goes along
// only where the frame says something else: GoOn makes it, and a fence at the beginning of a stream has the claim of another frame, of
// which it lacks the body.

const (
	// SignSeedBytes is the length of the seed of a key that signs frames (Ed25519, RFC 8032), and of its public part.
	SignSeedBytes = ed25519.SeedSize

	signDomain = "pgbridge frame\x00"
)

// ErrSignature means that a frame is not as its author has signed it, or that it is not signed by whom it names, but must be.
var ErrSignature = errors.New("frame is not signed by its author")

// Signer signs what one node writes. It does not change once built, and is safe for concurrent use.
type Signer struct{ key ed25519.PrivateKey }

// NewSigner returns a signer with the key of a seed of SignSeedBytes.
func NewSigner(seed []byte) (*Signer, error) {
	if len(seed) != SignSeedBytes {
		return nil, fmt.Errorf("a seed of %d bytes, not %d", len(seed), SignSeedBytes)
	}
	return &Signer{ed25519.NewKeyFromSeed(seed)}, nil
}

// sign signs a frame as it is.
func (s *Signer) sign(f *Frame) {
	f.Claim = nil
	f.Signature = ed25519.Sign(s.key, signed(f.claim()))
}

func signed(claim []byte) []byte { return append([]byte(signDomain), claim...) }

// Verifier checks who has signed frames. It does not change once built, and is safe for concurrent use.
type Verifier struct {
	keys    map[string]ed25519.PublicKey
	require bool
}

// NewVerifier returns a verifier of frames whose authors have these public keys, each of SignSeedBytes, by node. With require frames that
// are not signed are refused, too.
func NewVerifier(keys map[string][]byte, require bool) (*Verifier, error) {
	v := &Verifier{map[string]ed25519.PublicKey{}, require}
	for node, key := range keys {
		if len(key) != SignSeedBytes {
			return nil, fmt.Errorf("a key of %d bytes of node %s, not %d", len(key), node, SignSeedBytes)
		}
		v.keys[node] = key
	}
	return v, nil
}

// Check refuses a frame that is not as its author has signed it, and makes it say what its author did: it may hold transactions again
// then, and say what is old. The error wraps ErrSignature or ErrCorrupt. A nil Verifier takes all as they are.
func (v *Verifier) Check(f *Frame) error {
	switch {
	case v == nil:
		return nil
	case f.Signature == nil && f.Fence: // of a stream in which nothing was handed on yet
		f.FirstSeq, f.LastSeq, f.LastStamp, f.FirstCommitTime, f.LastCommitTime = 0, 0, 0, 0, 0
		f.Up, f.Low, f.ResumeLSN, f.Mark, f.Standbys = nil, nil, 0, Mark{}, ""
		return nil
	case f.Signature == nil && !v.require:
		return nil
	case f.Signature == nil:
		return fmt.Errorf("%w: transactions of node %s have no signature", ErrSignature, f.Origin.Node)
	}
	claim, key := f.Claim, v.keys[f.Origin.Node]
	if claim == nil {
		claim = f.claim()
	}
	if key == nil {
		return fmt.Errorf("%w: no key of node %s is here", ErrSignature, f.Origin.Node)
	}
	if !ed25519.Verify(key, signed(claim), f.Signature) {
		return fmt.Errorf("%w: the signature of node %s is not of this", ErrSignature, f.Origin.Node)
	}
	if f.Claim == nil {
		return nil
	}
	return f.restore()
}

// restore makes a frame say what was signed of it, which is its claim.
func (f *Frame) restore() error {
	said, sum, err := parseClaim(f.Claim)
	if err != nil {
		return err
	}
	if f.whole != nil {
		f.Body = f.whole
	}
	if said.Cluster != f.Cluster || said.Origin != f.Origin ||
		!f.Fence && (said.WriterEpoch != f.RunWriter() || sha256.Sum256(f.Body) != sum) {
		return fmt.Errorf("%w: the signature of node %s is of another frame", ErrSignature, f.Origin.Node)
	}
	said.Fence, said.Sealed, said.Sender, said.WriterEpoch, said.OriginWriter = f.Fence, f.Sealed, f.Sender, f.WriterEpoch, f.OriginWriter
	said.Hops, said.Back, said.Signature = f.Hops, f.Back, f.Signature
	if f.Fence {
		said.FirstSeq, said.Claim = 0, f.Claim
	}
	f.Header, f.whole = said, nil
	return nil
}

// Keep has a signed frame keep what its author has signed of it, whatever it is changed to. One that is not signed stays as it is.
func (f *Frame) Keep() {
	if f.Signature != nil && f.Claim == nil {
		f.Claim = f.claim()
	}
}

// claim is what a frame's author signs, of a frame that is as that one has made it.
func (f *Frame) claim() []byte {
	sum := sha256.Sum256(f.Body)
	return append(f.facts(), sum[:]...)
}

// facts are a header's fields that are its author's.
func (h *Header) facts() []byte {
	said := *h
	said.Sender, said.WriterEpoch, said.OriginWriter, said.Hops, said.Back = "", h.RunWriter(), 0, nil, 0
	said.Signature = nil
	return said.append(make([]byte, 0, 256), nil)
}

// heed takes out of a frame that was read what its author has signed and its sender has handed on already.
func (f *Frame) heed() error {
	if f.Claim = f.along(); f.Claim == nil || f.Fence {
		return nil
	}
	said, _, err := parseClaim(f.Claim)
	switch {
	case err != nil || said.FirstSeq == f.FirstSeq:
		return err
	case f.FirstSeq == 0:
		return f.cut(f.LastSeq)
	}
	return f.cut(f.FirstSeq - 1)
}

func parseClaim(claim []byte) (h Header, sum [sha256.Size]byte, err error) {
	n := len(claim) - len(sum)
	if n < 0 {
		return h, sum, fmt.Errorf("%w: claim of %d bytes", ErrCorrupt, len(claim))
	}
	copy(sum[:], claim[n:])
	p := parser{}
	h.parse(parser{b: claim[:n]}, &p)
	return h, sum, p.err
}

// along is the claim if it must go along with the frame: its author has said something else; nil: it has not.
func (f *Frame) along() []byte {
	if f.Claim == nil {
		return nil
	}
	same := f.facts()
	if f.Fence {
		same = f.claim()
	} else {
		same = append(same, f.Claim[max(len(f.Claim)-sha256.Size, 0):]...)
	}
	if bytes.Equal(same, f.Claim) {
		return nil
	}
	return f.Claim
}
