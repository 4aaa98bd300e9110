// Verifies Sigstore bundles that were signed with a key, with Sigstore's own library: npm ci, then
//
//   node sigstore_verify.mjs KEY.pem FILE.json...
//
// A FILE is a bundle, or a bare DSSE envelope, of which a bundle is made here, one for each signature (a bundle bears one alone).
//
// The key is the one that you name: the bundle's hint at it decides nothing. No transparency log of Sigstore's is asked for, since
// the attestations stand in a log of their own; see tlogverify for that one.

import { createPublicKey } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';

import { bundleFromJSON } from '@sigstore/bundle';
import { Verifier, toSignedEntity, toTrustMaterial } from '@sigstore/verify';

const [keyPath, ...paths] = process.argv.slice(2);
const publicKey = createPublicKey(readFileSync(keyPath));
const root = { tlogs: [], ctlogs: [], certificateAuthorities: [], timestampAuthorities: [] };
const trust = toTrustMaterial(root, () => ({ publicKey, validFor: () => true }));
const verifier = new Verifier(trust, { tlogThreshold: 0, ctlogThreshold: 0, timestampThreshold: 0 });

function bundles(found) {
  if ('mediaType' in found) return [found];
  return found.signatures.map((signature) => ({
    mediaType: 'application/vnd.dev.sigstore.bundle.v0.3+json',
    verificationMaterial: { publicKey: { hint: 'named by hand' }, tlogEntries: [] },
    dsseEnvelope: { ...found, signatures: [signature] },
  }));
}

for (const path of paths) {
  let fault = new Error('nothing signed it');
  const isVerified = bundles(JSON.parse(readFileSync(path, 'utf8'))).some((bundle) => {
    try {
      verifier.verify(toSignedEntity(bundleFromJSON(bundle)));
      return true;
    } catch (error) {
      fault = error;
      return false;
    }
  });
  if (!isVerified) {
    console.error(`NOT verified: ${basename(path)}: ${fault.message}`);
    process.exit(1);
  }
  console.log(`verified: ${basename(path)}`);
}
