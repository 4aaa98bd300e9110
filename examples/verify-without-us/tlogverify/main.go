// Verifies a checkpoint, or that a leaf is in a log, with golang.org/x/mod/sumdb alone.
//
// Usage: tlogverify checkpoint VKEY NOTE [WITNESS...]
//
//	tlogverify entry VKEY PROOF LEAF
//
// VKEY is the log's key as a line of text, NOTE a signed checkpoint, WITNESS the key of a witness that must have cosigned it, PROOF a
// .tlog-proof, LEAF the bytes of an entry. All are files.
package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "NOT verified:", err)
		os.Exit(1)
	}
}

func read(path string) string {
	data, err := os.ReadFile(path)
	check(err)
	return string(data)
}

// A witness verifies C2SP cosignatures: an Ed25519 key of kind 4, which signs a header, a time and the note's text. It is a note.Verifier.
type witness struct {
	name string
	hash uint32
	key  ed25519.PublicKey
	at   time.Time
}

func newWitness(vkey string) *witness {
	parts := strings.SplitN(strings.TrimSpace(vkey), "+", 3)
	if len(parts) != 3 {
		check(fmt.Errorf("not the key of a witness: %q", vkey))
	}
	hash, err := strconv.ParseUint(parts[1], 16, 32)
	check(err)
	key, err := base64.StdEncoding.DecodeString(parts[2])
	check(err)
	if len(key) != 1+ed25519.PublicKeySize || key[0] != 4 {
		check(fmt.Errorf("not the Ed25519 key of a witness: %q", vkey))
	}
	return &witness{name: parts[0], hash: uint32(hash), key: key[1:]}
}

func (w *witness) Name() string    { return w.name }
func (w *witness) KeyHash() uint32 { return w.hash }

func (w *witness) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	w.at = time.Unix(int64(at), 0).UTC()
	return ed25519.Verify(w.key, []byte(fmt.Sprintf("cosignature/v1\ntime %d\n%s", at, msg)), sig[8:])
}

// head verifies a note by the key, and by those of all witnesses, and returns size and root of the tree it is about.
func head(vkey, text string, witnesses ...*witness) (int64, tlog.Hash) {
	verifier, err := note.NewVerifier(strings.TrimSpace(vkey))
	check(err)
	verifiers := []note.Verifier{verifier}
	for _, one := range witnesses {
		verifiers = append(verifiers, one)
	}
	opened, err := note.Open([]byte(text), note.VerifierList(verifiers...))
	check(err)
	signed := map[string]bool{}
	for _, one := range opened.Sigs {
		signed[one.Name] = true
	}
	for _, one := range verifiers {
		if !signed[one.Name()] {
			check(fmt.Errorf("%s did not sign it", one.Name()))
		}
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() {
		check(fmt.Errorf("a checkpoint of another log, or none: %q", opened.Text))
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	root, err := tlog.ParseHash(lines[2])
	check(err)
	return size, root
}

func checkpoint(vkey, text string, paths []string) {
	var witnesses []*witness
	for _, path := range paths {
		witnesses = append(witnesses, newWitness(read(path)))
	}
	size, root := head(vkey, text, witnesses...)
	fmt.Printf("verified: %d entries, root %v\n", size, root)
	for _, one := range witnesses {
		fmt.Printf("cosigned: %s at %s\n", one.name, one.at.Format(time.RFC3339))
	}
}

func entry(vkey, proof, leaf string) {
	top, checkpoint, found := strings.Cut(proof, "\n\n")
	lines := strings.Split(top, "\n")
	if !found || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" {
		check(fmt.Errorf("not a .tlog-proof"))
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
	check(err)
	var path tlog.RecordProof
	for _, line := range lines[2:] {
		hash, err := tlog.ParseHash(line)
		check(err)
		path = append(path, hash)
	}
	size, root := head(vkey, checkpoint)
	check(tlog.CheckRecord(path, size, root, index, tlog.RecordHash([]byte(leaf))))
	fmt.Printf("verified: entry %d of %d\n", index, size)
}

func main() {
	arguments := os.Args[1:]
	switch {
	case len(arguments) >= 3 && arguments[0] == "checkpoint":
		checkpoint(read(arguments[1]), read(arguments[2]), arguments[3:])
	case len(arguments) == 4 && arguments[0] == "entry":
		entry(read(arguments[1]), read(arguments[2]), read(arguments[3]))
	default:
		check(fmt.Errorf("usage: tlogverify checkpoint VKEY NOTE [WITNESS...] | entry VKEY PROOF LEAF"))
	}
}
