// Verifies Sigstore bundles that were signed with a key, with Sigstore's own library: npm ci, then
//
//   node sigstore_verify.mjs KEY.pem BUNDLE.json...
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

for (const path of paths) {
  try {
    verifier.verify(toSignedEntity(bundleFromJSON(JSON.parse(readFileSync(path, 'utf8')))));
  } catch (error) {
    console.error(`NOT verified: ${basename(path)}: ${error.message}`);
    process.exit(1);
  }
  console.log(`verified: ${basename(path)}`);
}
